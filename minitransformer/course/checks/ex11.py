"""Checks of exercise 11, pools, hardware and goodput: each of its tasks is in a file of its own."""

from minitransformer.course.checks import (  # noqa: F401, they register tasks
    capacity_plan,
    pool_interview,
    pool_napkin,
    pool_sizes,
    two_stages,
)
