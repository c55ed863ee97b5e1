"""What ``make test-docs`` runs beside the notebooks: everything that a page promises to work."""
