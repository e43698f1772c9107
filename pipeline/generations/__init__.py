"""What an output holds: published generations, verified, rolled back and pruned."""
