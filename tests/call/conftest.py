"""Each test here counts for itself."""

from tests.isolation import limits_of_its_own

__all__ = ["limits_of_its_own"]
