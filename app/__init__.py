"""What people and programs touch: the command line. Knows nothing of tensors."""
