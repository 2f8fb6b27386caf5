"""Rewards: what a policy's answers are graded by."""
