SELECT * FROM events
WHERE cardinality(attribute::MAP(VARCHAR, VARCHAR)) > 0
    AND list_has_all(map_entries(attributes), map_entries(attribute))
    AND saga_name GLOB saga
