"""Nexmark: an auction site's persons, auctions and bids, and the questions that stream processors are asked of them."""
