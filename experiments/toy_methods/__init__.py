"""What figure 1 compares: one file a method, each `fit(problem, seed)` → a way to draw points."""
