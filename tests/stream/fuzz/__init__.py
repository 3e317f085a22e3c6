"""Saved programs that no one wrote, under AddressSanitizer and UndefinedBehaviorSanitizer."""
