"""A shop: orders on a write side with constraints and a read side for its pages."""
