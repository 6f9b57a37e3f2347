"""Planning: what a training step needs and does on a chip that need not be here. Nothing is trained."""
