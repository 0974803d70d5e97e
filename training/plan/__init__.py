"""Hours and GiB of a recipe, counted before anything is loaded: `plan.plan` is the way in."""
