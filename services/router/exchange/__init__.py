"""It is responsible for one prompt from arrival to answer: what is held back, what is proven, and how it ended."""
