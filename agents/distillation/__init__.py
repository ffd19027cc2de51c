"""Distillation: a trained agent compressed into a smaller one."""
