"""The variables with which `lora-worker` starts."""

SETTINGS = {
    "SUPABASE_URL": "https://p.supabase.co/",
    "SUPABASE_SERVICE_ROLE_KEY": "sb_secret_abcdef",
    "SUPABASE_PUBLISHABLE_KEY": "sb_publishable_abcdef",
    "GPU_CLUSTER_API_URL": "https://api.runpod.ai/v2/ep",
    "GPU_CLUSTER_API_KEY": "rpa_abcdef",
}
"""The five that are enough."""

OTHER_NAMES = ("SUPABASE_ANON_KEY", "SUPABASE_SECRET_KEY", "RUNPOD_ENDPOINT_ID", "RUNPOD_API_KEY")
"""Other names of the same settings, which the machine of a developer may have set."""
