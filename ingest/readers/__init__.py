"""One file per published layout, each with its table of units."""
