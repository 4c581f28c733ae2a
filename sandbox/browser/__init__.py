"""A headless Chromium for the tests of the dashboard and for its screenshots."""

from sandbox.browser.chromium import Chromium, find_chromium

__all__ = ["Chromium", "find_chromium"]
