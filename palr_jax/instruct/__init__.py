"""Items and users become token segments: templates, tasks, profiles, the grain pipeline."""
