"""A WebSocket server for uvicorn: every message comes back; "push" brings three more unasked, "close" ends it."""


async def app(scope, receive, send):
    if scope["type"] != "websocket":
        return
    while (event := await receive())["type"] != "websocket.disconnect":
        if event["type"] == "websocket.connect":
            await send({"type": "websocket.accept"})
        elif event.get("text") == "close":
            await send({"type": "websocket.close", "code": 4001})
            return
        else:
            await send({**event, "type": "websocket.send"})
            for number in range(3 if event.get("text") == "push" else 0):
                await send({"type": "websocket.send", "text": str(number)})
