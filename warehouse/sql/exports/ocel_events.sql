-- Each event as OCEL 2.0 has it, a JSON object a row, in order of time.
SELECT to_json({
    'id': event_id,
    'type': event_type,
    'time': strftime("timestamp", '%Y-%m-%dT%H:%M:%S.%gZ'),
    'attributes': list_filter([
        {'name': 'sequence', 'value': "sequence"::VARCHAR},
        {'name': 'attempt', 'value': attempt::VARCHAR},
        {'name': 'duration_ms', 'value': duration_ms::VARCHAR},
        {'name': 'total_duration_ms', 'value': total_duration_ms::VARCHAR},
        {'name': 'error_type', 'value': error_type},
        {'name': 'error_message', 'value': error_message},
        {'name': 'trace_id', 'value': trace_id}
    ], lambda one: one.value IS NOT NULL) || list_transform(
        coalesce(map_entries(attributes), []),
        lambda one: {'name': 'attributes.' || one.key, 'value': coalesce(one.value, '')}
    ),
    'relationships': list_filter([
        {'objectId': ${saga}, 'qualifier': 'of saga'},
        {'objectId': ${run}, 'qualifier': 'in run'},
        {'objectId': ${step}, 'qualifier': 'of step'},
        {'objectId': ${service}, 'qualifier': 'reported by'}
    ], lambda one: one.objectId IS NOT NULL)
})
FROM (${single_events})
ORDER BY "timestamp", run_id, "sequence", event_id
