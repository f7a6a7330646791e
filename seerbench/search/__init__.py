"""Search offline what a method needs for one model: MoA's plans and MInference's patterns."""
