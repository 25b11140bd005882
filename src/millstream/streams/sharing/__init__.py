"""One flow in several processes of one machine: each takes the rows of a range of keys, one commits for all."""
