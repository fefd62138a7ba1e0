"""How ids are chosen. `plain` is the definition, `cached` the same on fixed-capacity caches, `fused` on a GPU."""
