"""Supabase Storage: objects, buckets, and where a run keeps its files."""
