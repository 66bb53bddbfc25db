"""A run on real machines: ranks, optimizer, settings, sessions."""
