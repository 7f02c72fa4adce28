"""What a run will need and take: memory, time and cost, before it begins."""
