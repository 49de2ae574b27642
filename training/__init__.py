"""Trains and evaluates the daemon's own person detector. Not needed at run time; needs torch."""
