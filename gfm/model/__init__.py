"""The network: graphs, radial bases, message-passing layers, heads, the potential. Needs torch."""
