"""How ids are chosen. `plain` is the definition, `cached` the same on caches of fixed capacity, `native` that in C++
on a CPU, `fused` on a GPU."""
