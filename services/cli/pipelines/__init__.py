"""It is responsible for `teemesh pipeline`: what made a model's weights, recorded by the jobs that did, and judged."""
