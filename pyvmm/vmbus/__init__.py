"""VMBus: messages, shared rings and devices between a Hyper-V host and its guest."""
