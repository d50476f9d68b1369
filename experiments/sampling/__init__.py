"""From a trained run to its samples: opened, drawn, of a class, kept in parts and as files."""
