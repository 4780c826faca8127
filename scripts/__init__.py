"""What makes the demo model, measures sdpy and draws the figures of its documentation.

Every script is a module that is run from the repository's root, such as
``python -m scripts.demo.train``. See ``scripts/README.md``.
"""
