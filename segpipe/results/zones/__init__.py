"""Areas of classes in polygons, such as fields, over the masks of a run."""
