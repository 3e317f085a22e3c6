"""What modules are called with: names of keywords, numbers, tensors. Each is refused in one way, in one place."""
