"""The bundled demo model: its scenes, training, distillation and evaluation."""
