"""The nodes of a cluster among themselves: their register, and the clean-up of dead nodes."""
