"""From a source of interactions to a catalog and a leave-one-out split."""
