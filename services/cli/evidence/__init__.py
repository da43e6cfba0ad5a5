"""It is responsible for `teemesh evidence`: reading, appraising, fetching, repeating and watching it."""
