"""Attention backends behind one interface; :mod:`m4_flash.backends.select` picks one."""
