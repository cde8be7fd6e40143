"""The whole codec, on data of which everything is known: laws, distortions, sizes, and damage."""

import dataclasses
import functools

import numpy as np
import pytest
from scipy import stats

from ddpm_jax.codec import Codec, Goal, Search, fit_table, parse_goal, read_file
from ddpm_jax.errors import UserError
from tests.codec import gaussian
from tests.codec.gaussian import SCHEDULE, SHAPE, STD, disturbed, posterior_variance, predict

MODEL_ID = b'gaussian'


@functools.cache
def codec(levels=256):
  data = gaussian.examples(400, levels=levels or 256)
  if levels is None:
    data = np.float32(data / 127.5 - 1)
  table = fit_table(SCHEDULE, predict, data, levels=levels)
  return Codec(SCHEDULE, table, predict, SHAPE, MODEL_ID)


@functools.cache
def encoded(levels=256):
  """(held-out examples, their files)."""
  examples = gaussian.examples(40, seed=1, levels=levels)
  return examples, codec(levels).encode(examples, Goal(), seed=7)


@pytest.mark.parametrize('levels', [256, 4096])
def test_files_give_the_examples_back(levels):
  examples, files = encoded(levels)
  read = [read_file(file.to_bytes()) for file in files]
  for decoded, example in zip(codec(levels).decode(read), examples, strict=True):
    np.testing.assert_array_equal(decoded.levels, example)
    assert decoded.note is None


@pytest.mark.parametrize('noise', [1e-6, 1e-5])
def test_another_machine_decodes_the_same(noise):
  """Predictions that differ a little, in another batch: nothing is desynchronised."""
  examples, files = encoded()
  other = dataclasses.replace(codec(), predict=disturbed(noise))
  for first in (0, 8):
    for decoded, example in zip(
      other.decode(files[first : first + 8]), examples[first : first + 8], strict=True
    ):
      np.testing.assert_array_equal(decoded.levels, example)
  lossy = [file.first(len(file.sections) - 1) for file in files]
  for own, others in zip(codec().decode(lossy), other.decode(lossy), strict=True):
    np.testing.assert_allclose(own.x_0, others.x_0, atol=4 * noise)


def test_a_margin_that_is_too_small_is_told_and_gives_no_wrong_picture():
  examples, files = encoded()
  other = dataclasses.replace(codec(), predict=disturbed(3e-3))
  decoded = other.decode(files)
  assert all(
    d.levels is None or (d.levels == x).all() for d, x in zip(decoded, examples, strict=True)
  )
  told = [d for d in decoded if d.levels is None]
  assert len(told) > 30
  assert all('margin' in d.note and np.isfinite(d.x_0).all() for d in told)


def test_every_prefix_has_the_distortion_of_its_step():
  examples, files = encoded()
  x_0 = examples / 127.5 - 1
  steps = codec().table.steps(SCHEDULE)
  ends = [None, *(step.timestep for step in steps if step.ends_section)]
  assert len(ends) > 3
  for count, t in enumerate(ends):
    decoded = codec().decode([file.first(count) for file in files])
    assert all(d.levels is None and d.note is None for d in decoded)
    found = np.mean(np.square([d.x_0 for d in decoded] - x_0))
    expected = STD**2 if t is None else posterior_variance(t)
    # The fast search leaves so little data short; the standard error is 0.02.
    assert -0.05 < np.sqrt(found / expected) - 1 < (0.12 if count else 0.05), count


def test_the_law_of_the_states_is_the_chains():
  examples = gaussian.examples(40, seed=2)
  x_0, white = examples / 127.5 - 1, []
  last = sum(step.ends_section for step in codec().table.steps(SCHEDULE))
  for seed in range(2):
    files = codec().encode(examples, Goal(), seed=seed, search=Search(True, 12))
    for decoded, x in zip(codec().decode([f.first(last) for f in files]), x_0, strict=True):
      a = SCHEDULE.alphas_cumprod[codec().table.arrays['timesteps'][decoded.row]]
      white.append((decoded.x_t - np.sqrt(a) * x) / np.sqrt(1 - a))
  assert stats.kstest(np.ravel(white), 'norm').pvalue > 1e-3
  assert stats.kstest(np.square(white).reshape(80, -1).sum(1), stats.chi2(64).cdf).pvalue > 1e-3


def test_the_payload_is_near_the_sum_of_the_kls():
  _, files = encoded()
  steps = codec().table.steps(SCHEDULE)
  bits = sum(step.pieces.bits for step in steps)
  lossy = np.mean([8 * sum(map(len, file.sections[:-1])) for file in files])
  assert bits < lossy < 1.45 * bits  # cut to bytes at each section
  whole = sum(map(len, files[0].sections))
  assert codec().payload_bytes(files[0]) == whole - 4  # without the picture's checksum
  assert codec().payload_bytes(files[0].first(2)) == sum(map(len, files[0].sections[:2]))


def test_kls_of_examples_are_those_that_the_table_expects():
  examples, files = encoded()
  told = []
  codec().decode(files, at_steps=told.append)
  steps = codec().table.steps(SCHEDULE)
  assert len(told) == len(steps) + 1
  found = codec().kls(np.float32(examples / 127.5 - 1), np.stack(told))
  expected = [step.pieces.bits for step in steps]
  # The fast search leaves states a little short of x_0, which the steps that follow make good.
  np.testing.assert_allclose(found.mean(1), expected, rtol=0.25)


@pytest.mark.parametrize('num_bytes', [1, 40, 45, 60, 10_000])
def test_a_number_of_bytes_is_kept(num_bytes):
  examples, files = encoded()
  for limited, whole in zip(
    codec().encode(examples[:4], Goal(num_bytes=num_bytes), seed=7), files, strict=False
  ):
    size = len(limited.to_bytes())
    assert size <= num_bytes or not limited.sections
    more = whole.first(len(limited.sections) + 1)
    assert len(more.to_bytes()) > num_bytes or more == limited
    assert more.sections[: len(limited.sections)] == limited.sections


def test_a_distortion_is_reached_with_no_more_than_it_takes():
  examples, files = encoded()
  x_0 = examples / 127.5 - 1
  for rmse in (20.0, 9.0, 1e-3):
    limited = codec().encode(examples[:6], Goal(rmse=rmse), seed=7)
    for file, x, example in zip(limited, x_0, examples, strict=False):

      def distance(count, file=file, x=x):
        (decoded,) = codec().decode([file.first(count)])
        return 127.5 * np.sqrt(np.mean(np.square(decoded.x_0 - x)))

      count = len(file.sections)
      if count == len(files[0].sections):  # no prediction is so near
        np.testing.assert_array_equal(codec().decode([file])[0].levels, example)
        continue
      assert distance(count) <= rmse + 1e-3
      assert count == 0 or distance(count - 1) > rmse - 1e-3


def test_a_file_depends_on_its_example_and_the_seed_alone():
  examples, files = encoded()
  (alone,) = codec().encode(examples[3:4], Goal(), seed=7)
  assert alone == files[3]
  (other,) = codec().encode(examples[3:4], Goal(), seed=8)
  assert other.sections != alone.sections


@pytest.mark.parametrize('kind', ['ancestral', 'flow'])
def test_completions_have_the_spread_of_the_data(kind):
  examples, files = encoded()
  for count in (0, 1):
    decoded = codec().decode([file.first(count) for file in files])
    completed = codec().complete(decoded, kind, seed=1)
    assert abs(completed.std() / STD - 1) < 0.15
    if count:  # and are nearer to the example than to any
      error = np.square(completed - (examples / 127.5 - 1)).mean()
      assert error < 1.6 * STD**2
  np.testing.assert_array_equal(completed, codec().complete(decoded, kind, seed=1))


def test_values_of_any_kind_have_lossy_files_alone():
  x_0 = np.float32(gaussian.examples(5) / 127.5 - 1)
  with pytest.raises(UserError, match='no lossless end'):
    codec(None).encode(x_0, Goal())
  files = codec(None).encode(x_0, Goal(rmse=0.05))
  for decoded, x in zip(codec(None).decode(files), x_0, strict=True):
    assert np.sqrt(np.square(decoded.x_0 - x).mean()) <= 0.05


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    ({'model_id': b'another.'}, 'is of the model'),
    ({'table_id': b'else'}, 'goes with the table'),
    ({'shape': (8, 8, 1)}, r'\[8, 8, 1\]'),
    ({'levels': 17}, '17 levels'),
  ],
)
def test_files_of_another_model_are_refused(change, words):
  _, files = encoded()
  foreign = dataclasses.replace(files[0], header=dataclasses.replace(files[0].header, **change))
  with pytest.raises(UserError, match=words):
    codec().decode([foreign])


def test_a_damaged_file_gives_its_whole_sections_and_a_note():
  _, files = encoded()
  data = files[0].to_bytes()
  for length in (len(data) - 1, len(data) - 30, 45):
    found = read_file(data[:length], 'a.ddpc')
    (decoded,) = codec().decode([found])
    (whole,) = codec().decode([files[0].first(len(found.sections))])
    np.testing.assert_array_equal(decoded.x_0, whole.x_0)
    assert decoded.note.startswith('a.ddpc is cut off or damaged')
    assert decoded.levels is None


def test_sections_with_right_checksums_and_wrong_content_end_in_a_note():
  _, files = encoded()
  rng = np.random.default_rng(0)
  for count in (1, 2, len(files[0].sections)):
    sections = tuple(rng.bytes(max(len(x), 8)) for x in files[0].sections[:count])
    (decoded,) = codec().decode([dataclasses.replace(files[0], sections=sections)])
    assert np.isfinite(decoded.x_0).all()
    assert decoded.levels is None


@pytest.mark.parametrize('given', ['', 'all', 'bytes', 'bytes:', 'bytes:0', 'bytes:x', 'bytes:6_0',
                                   'bytes: 60', 'bytes:6e1', 'bytes:\u0663', 'rmse:1_0', 'rmse:-1',
                                   'rmse:nan', 'rmse:inf'])  # fmt: skip
def test_targets_that_are_none_are_refused(given):
  with pytest.raises(UserError, match='must be lossless'):
    parse_goal(given)


def test_targets_are_read():
  assert parse_goal('lossless').is_lossless
  assert parse_goal('bytes:400') == Goal(num_bytes=400)
  assert parse_goal('rmse:1.5') == Goal(rmse=1.5)
  assert parse_goal('rmse:1e-6') == parse_goal('rmse:.000001') == Goal(rmse=1e-6)
