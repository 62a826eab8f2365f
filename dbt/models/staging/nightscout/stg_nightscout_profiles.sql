-- A document holds several named profiles, and says which of them is used.
with documents as (
    select * from {{ source('lake', 'nightscout_profiles') }}
    where kind = 'profile' and not is_deleted and not is_duplicate
)

select
    documents.profile_id,
    documents.site,
    documents.profile_timestamp,
    documents.created_timestamp,
    profiles.key as profile_name,
    coalesce(profiles.key = documents.default_profile_name, false) as is_default,
    json_extract_string(profiles.value, '$.timezone') as timezone,
    json_extract(profiles.value, '$.basal') as basal
from documents
cross join lateral json_each(documents.store) as profiles
