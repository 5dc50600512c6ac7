"""The clients in other languages: their own tests, and their examples as real processes against a running mesh."""

import pytest

pytest.register_assert_rewrite(f"{__name__}.contract")
