"""Plans: a graph level for concrete shapes, as a flat list of steps over numbered slots, and what replays it."""
