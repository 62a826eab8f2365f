{%- set collections = ['entries', 'treatments', 'device_status', 'profiles'] -%}

{% for collection in collections %}
    select
        site,
        '{{ collection }}' as collection,
        nightscout_id as document_id,
        quarantine_reason as reason,
        document,
        batch,
        first_fetched_at as first_seen_at,
        fetched_at as last_seen_at
    from {{ source('lake', 'nightscout_' ~ collection) }}
    where kind = 'quarantined' and not is_deleted
    {% if not loop.last %}union all{% endif %}
{% endfor %}
