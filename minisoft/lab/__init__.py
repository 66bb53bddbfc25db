"""What was measured, and the tools for it."""
