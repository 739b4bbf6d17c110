"""Everything about running: settings, store, the Ray-job bridge, tracking, services, reports."""
