"""A running job as others see it: what it tells of itself, and how it is steered from outside."""
