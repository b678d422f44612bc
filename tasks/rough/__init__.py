"""Walking over patches of rough ground."""
