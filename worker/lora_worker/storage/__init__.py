"""Supabase Storage: its objects and buckets, and the paths of a run's files."""
