import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.security.MessageDigest;
import java.security.SecureRandom;
import java.util.HexFormat;
import java.util.List;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;

/** An HTTP server with a thread pool, a timer and memory that the garbage collector owns. `java Server.java` runs it. */
public class Server {
  static final byte[] heap = new byte[8 << 20];
  static final List<String> notes = new CopyOnWriteArrayList<>();
  static final AtomicLong ticks = new AtomicLong();

  interface Route { String answer(String body) throws Exception; }

  static void route(HttpServer server, String path, Route route) {
    server.createContext(path, exchange -> {
      byte[] answer;
      int status = 200;
      try {
        answer = route.answer(new String(exchange.getRequestBody().readAllBytes())).getBytes();
      } catch (Exception error) {
        answer = error.toString().getBytes();
        status = 500;
      }
      exchange.sendResponseHeaders(status, answer.length);
      exchange.getResponseBody().write(answer);
      exchange.close();
    });
  }

  public static void main(String[] arguments) throws Exception {
    new SecureRandom().nextBytes(heap);
    String token = HexFormat.of().formatHex(heap, 0, 8);
    Executors.newScheduledThreadPool(2).scheduleAtFixedRate(() -> {
      byte[] garbage = new byte[1 << 16];
      ticks.addAndGet(garbage.length >> 16);
    }, 0, 20, TimeUnit.MILLISECONDS);
    HttpServer server = HttpServer.create(new InetSocketAddress("0.0.0.0", 8000), 64);
    server.setExecutor(Executors.newFixedThreadPool(4));
    route(server, "/health", body -> "\"ok\"");
    route(server, "/state", body -> "{\"token\": \"" + token + "\", \"heap\": \""
        + HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(heap)) + "\", \"notes\": \"" + notes + "\"}");
    route(server, "/change", body -> { notes.add(body); System.gc(); return "null"; });
    route(server, "/live", body -> "{\"errors\": [], \"ticks\": {\"timer\": " + ticks + "}}");
    server.start();
  }
}
