"""From config fields to objects: builders, and the checks of values before anything is built."""
