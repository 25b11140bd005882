"""A small bank on Millstream: accounts, customers who can be forgotten, transfers, and the books at any past date."""
