"""The embedded motion of a smartwatch: whole windows, and people who are held out."""

import numpy as np
import pytest

from ddpm_jax.data import NoSplitError, make_source, read_labels
from ddpm_jax.data.watch import TEST_PEOPLE, _load
from ddpm_jax.errors import UserError


def open_watch(split, length=128):
  return make_source('watch', dir=None, image_size=(length,), channels=6, split=split)


def test_the_recordings_are_all_there():
  recordings = _load()
  assert recordings['values'].shape == (recordings['lengths'].sum(), 6)
  assert recordings['values'].dtype == np.int16
  triples = set(
    zip(*(recordings[name].tolist() for name in ('people', 'labels', 'sides')), strict=True)
  )
  assert len(triples) == 140  # each of ten people did each of seven exercises with either arm
  # In units of 0.001 g and 0.0025 rad/s they are within the levels of configs/watch.py.
  assert np.abs(recordings['values'].astype(int)).max() < 16_384 // 2
  gravity = np.linalg.norm(recordings['values'][:, :3].mean(0)) * 0.001
  assert 0.1 < gravity < 1.5


def test_no_window_of_the_test_people_is_trained_on():
  recordings = _load()
  person = np.repeat(recordings['people'], recordings['lengths'])
  label = np.repeat(recordings['labels'], recordings['lengths'])
  recording = np.repeat(np.arange(140), recordings['lengths'])
  for split, people in (('train', set(range(1, 11)) - {*TEST_PEOPLE}), ('test', {*TEST_PEOPLE})):
    source = open_watch(split)
    rows = source._starts[:, None] + np.arange(128)
    assert set(person[rows].ravel().tolist()) == people
    assert (recording[rows] == recording[rows[:, :1]]).all()  # none goes over an end
    np.testing.assert_array_equal(read_labels(source).ids, label[rows[:, 0]])
    np.testing.assert_array_equal(source.read(np.arange(5)), recordings['values'][rows[:5]])
  test = open_watch('test')._starts
  assert (np.diff(test) >= 128).all()
  train, everything = open_watch('train')._starts, open_watch('all')._starts
  assert set(train.tolist()) < set(everything.tolist())


def test_windows_have_the_length_that_is_asked_for():
  assert open_watch('test', 474).read(np.array([0])).shape == (1, 474, 6)
  assert open_watch('train', 64).version() != open_watch('train', 128).version()


def test_the_labels_are_the_exercises():
  labels = read_labels(open_watch('train'))
  assert labels.names[:2] == ('pendulum', 'abduction')
  assert np.bincount(labels.ids).min() > 100


@pytest.mark.parametrize(
  ('choices', 'error', 'message'),
  [
    ({'split': 'val'}, NoSplitError, "data.split='val': watch has the splits train, test, all"),
    ({'image_size': 8}, UserError, 'has signals of 6 channels: give --config.data.image_size=128,'),
    ({'channels': 3}, UserError, r'has signals of 6 channels: .*--config\.data\.channels=6'),
    ({'image_size': (475,)}, UserError, 'the shortest recording of watch has 474 samples'),
    ({'image_size': (0,)}, UserError, 'must be at least 1'),
  ],
)
def test_what_it_has_not_is_named(choices, error, message):
  with pytest.raises(error, match=message):
    make_source(
      'watch', dir=None, **{'image_size': (128,), 'channels': 6, 'split': 'train', **choices}
    )
